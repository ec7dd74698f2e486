"""Training of the embedded model in three stages; see `tokcomp.embedded.train`."""
