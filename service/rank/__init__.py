"""The wire of /v1/rank: question, columns, answer, explanation, OpenAPI."""
