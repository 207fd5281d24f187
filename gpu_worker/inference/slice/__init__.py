"""The life of this worker's slice: loading it, standing in pipelines, giving it up."""
