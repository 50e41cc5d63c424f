"""Everything that learns from data: the bundled model and the layout predictor."""
