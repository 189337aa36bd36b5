"""What is measured and how it is judged: metrics, objectives, Pareto arithmetic. Pure numbers; imports errors only."""
