//! The demo: eight pods, a broker and a route agent that is killed and upgraded.
