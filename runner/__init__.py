"""The one trainer, and how runs are composed, identified, recorded and executed."""
