"""Options of gradient descent: each is one file, and none costs anything unless the job file names it."""
