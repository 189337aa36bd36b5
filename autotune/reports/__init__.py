"""Reports from the records of a job: an HTML page about a picked map, CSV files, MLflow runs, an Optuna study."""
