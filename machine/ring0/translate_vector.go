package ring0

func (t *translator) planVector(in *inst, code []byte) plan { return plan{} }
