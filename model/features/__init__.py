"""Raw values -> encoded blocks: the one code path of training and serving."""
