"""The endpoints of the API, grouped by what they answer about."""
