"""What every protocol needs to know of flows: networks, translation, activity, listeners, records. Pure."""
