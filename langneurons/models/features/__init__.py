"""The features of dictionaries as sites."""
