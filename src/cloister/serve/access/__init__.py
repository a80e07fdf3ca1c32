"""Who may call what: credentials become callers, Cedar decides, limits and an audit log follow."""
