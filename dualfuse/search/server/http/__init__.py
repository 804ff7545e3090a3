"""What concerns HTTP alone: the token, sizes, timeouts, headers, errors and logs."""
