"""The metrics page: what the gateway measures of requests, what the other processes report, and its text."""
