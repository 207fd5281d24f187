"""What is asked, what matches, who holds a payment: values in, values out."""
