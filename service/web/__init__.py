"""The HTTP service and its page.

app           the application and its server
routes        which URL gives which answer
answers       the answers as models
conditional   ETags
problem       errors as `application/problem+json`
security      who may ask, and what a browser is told
prometheus    `/metrics`
pages         the page in `page/`
"""
