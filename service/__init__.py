"""The job status service: records of jobs, and the HTTP service that reads them. No torch here."""
