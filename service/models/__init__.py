"""Model families that are served: store, versions, labels, files beside them, catalogues, admin."""
