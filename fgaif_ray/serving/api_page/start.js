"use strict";
// Relative to the page, which may be below a prefix. No validator: it is another site, and would be told the address.
SwaggerUIBundle({ url: "openapi.json", dom_id: "#swagger-ui", validatorUrl: null });
