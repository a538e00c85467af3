"""The control log: commands, and their fold into what is in force. Pure: no clock, no broker, no model."""
