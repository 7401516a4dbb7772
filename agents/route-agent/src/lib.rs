//! A node agent that serves routes from EndpointSlices.
