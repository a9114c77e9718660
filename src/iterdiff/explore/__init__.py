"""The explorer: settings in, figures and verdicts out, in a thin shell of Streamlit.

A choice of settings (`choices`) becomes a study in words (`words`), the study a dataset
(`compute`), and the dataset figures as plain data (`figures`). Only `app` knows Streamlit.
"""
