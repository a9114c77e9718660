"""Problems with constraints, beside other libraries."""
