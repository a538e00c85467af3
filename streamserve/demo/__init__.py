"""The demo: real flights, from data and training to served predictions."""
