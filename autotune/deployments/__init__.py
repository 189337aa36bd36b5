"""What is deployed after a search: records of deployments, and the chain of their changes."""
