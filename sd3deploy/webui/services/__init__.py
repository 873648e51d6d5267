"""Work that is asked for beside pictures: diagnoses, checks, installations and reports."""
