"""The store: everything recorded about jobs. The only folder that imports sqlalchemy."""
