"""Deploys the front of a job whole: a bundle of its maps, and one model that runs any of them."""
