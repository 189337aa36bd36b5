"""The store: all records of jobs. The only folder that imports sqlalchemy."""
