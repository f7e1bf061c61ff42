"""What runs rings beyond one machine: the routing rule, a reader of KV events, and what hands them to a cluster."""
