"""What a worker does with a candidate: build, screen, train, score; and what a network costs."""
