"""Build the HTML report: data, figures, claims and pages."""
