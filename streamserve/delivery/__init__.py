"""What is safe to commit: the ledger, the gate, and the door through which output leaves."""
