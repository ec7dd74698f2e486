"""The second embedded model and its benchmark: questions that need depth, answers that need the image while they are
written. Data (`scenes`, `questions`, `dataset`), model (`architecture`, `codes`) and its training (`stages`)."""
