"""The first stage of a pipeline: it takes requests and leads the steps of all sessions through all stages."""
