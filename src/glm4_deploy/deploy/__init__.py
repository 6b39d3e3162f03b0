"""The only room that changes the host: start, gate, record, restore. May import every room below except `audit`."""
