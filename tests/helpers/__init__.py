"""What the tests share: data, stores, commands, clusters and faults. No tests are in here."""
