"""Training, scoring and using models of tweets: what taggers and classifiers share."""
