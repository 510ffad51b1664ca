"""What a set of runs says: what varied, what won, how sure that is, and the page that shows it (`report.write_study`)."""
