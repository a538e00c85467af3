"""Contestants that are not streamserve: what a good engineer writes by hand. No streamserve code in here."""
