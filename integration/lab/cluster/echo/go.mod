module lab/echo

go 1.25.0
