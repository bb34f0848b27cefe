"""The parts of the HTML report: agreement, embedded details, inline pictures; its templates, style and script."""
