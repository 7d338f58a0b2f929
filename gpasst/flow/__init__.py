"""Rules for flows of every protocol: networks, translation, activity, listeners, records. Pure."""
