"""What arrays of features are worth: votes, classifiers, neighbours, clusters."""
