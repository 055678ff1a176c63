"""The HTTP service and its page.

app             the application and its server
routes          which URL gives which answer
answer_models   the answers as models
conditional     ETags
problem         errors as `application/problem+json`
security        who may ask: names, tokens, a proxy's address
guard           what every request passes, and what a browser is told
connections     how long and how many connections are kept
prometheus      `/metrics`
pages           the page in `page/`
"""
