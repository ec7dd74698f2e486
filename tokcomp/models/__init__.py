"""One file per model family; nothing else in the package names a model class."""
