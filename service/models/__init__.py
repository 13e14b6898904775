"""Model families that are served: store, versions, labels, value models, catalogues, admin."""
