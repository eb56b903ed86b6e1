"""A call-detail-record writer: a service of one's own, in two versions."""
