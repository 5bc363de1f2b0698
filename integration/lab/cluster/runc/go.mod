module lab/runc

go 1.22
