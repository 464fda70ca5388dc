package grub

// list is commands one after the other.
type list []command

// command is one of simple, *branch, *forLoop, *whileLoop or *function.
type command any

// simple is a command with its words, and maybe a block such as that of menuentry.
type simple struct {
	words []word
	block list
	has   bool // a block, which can be empty
}

// branch is an if: the first condition that is true says what is run.
type branch struct {
	conditions []list
	blocks     []list
	otherwise  list
}

type forLoop struct {
	name  string
	words []word
	body  list
}

type whileLoop struct {
	condition list
	until     bool
	body      list
}

type function struct {
	name string
	body list
}

type parser struct {
	lex   lexer
	token token
	depth int
}

// maxFaults is how many a script may have until no more of it is read.
const maxFaults = 10

// parse reads a script. As GRUB does, it goes on in the line behind a fault.
func parse(s string) (out list, faults []error) {
	p := &parser{lex: lexer{s: s, line: 1}}
	p.advance()
	for {
		some, err := p.list()
		out = append(out, some...)
		if err == nil && p.token.kind == tokenEnd {
			return out, faults
		}
		if err == nil {
			err = p.unexpected()
		}
		if faults = append(faults, err); len(faults) == maxFaults {
			return out, faults
		}
		p.depth = 0
		if p.token.kind != tokenLine {
			p.lex.skipLine()
		}
		p.advance()
	}
}

// advance goes to the next token. What is wrong with that comes to light where it is
// used, so that all before it is kept.
func (p *parser) advance() { p.token = p.lex.next() }

func (p *parser) unexpected() error {
	if p.token.kind == tokenFault {
		return p.token.fault
	}
	what := map[kind]string{tokenEnd: "the end", tokenLine: "the end of the command", tokenOpen: "{", tokenClose: "}", tokenOther: "an operator"}[p.token.kind]
	if p.token.kind == tokenWord {
		what = p.token.word.literal()
	}
	return fault{p.token.line, "unexpected: " + what}
}

// keyword goes past a word that has to come now.
func (p *parser) keyword(want string) error {
	if p.token.kind != tokenWord || p.token.word.literal() != want {
		return fault{p.token.line, "no " + want}
	}
	p.advance()
	return nil
}

// list reads commands up to a closing brace, the end, or a word that ends a list.
func (p *parser) list() (out list, err error) {
	if p.depth++; p.depth > maxNesting {
		return nil, fault{p.token.line, "too many blocks within each other"}
	}
	defer func() { p.depth-- }()
	for {
		switch p.token.kind {
		case tokenLine:
			p.advance()
			continue
		case tokenWord:
		default:
			return out, nil
		}
		var c command
		switch p.token.word.literal() {
		case "then", "elif", "else", "fi", "do", "done":
			return out, nil
		case "if":
			c, err = p.branch()
		case "for":
			c, err = p.forLoop()
		case "while", "until":
			c, err = p.whileLoop()
		case "function":
			c, err = p.function()
		default:
			c, err = p.simple()
		}
		if err != nil {
			return out, err
		}
		out = append(out, c)
	}
}

func (p *parser) simple() (command, error) {
	c := simple{}
	for p.token.kind == tokenWord {
		c.words = append(c.words, p.token.word)
		p.advance()
	}
	switch p.token.kind {
	case tokenOpen:
		var err error
		c.block, err = p.block()
		c.has = true
		return c, err
	case tokenOther, tokenFault:
		return nil, p.unexpected()
	}
	return c, nil
}

// block reads a list in braces.
func (p *parser) block() (list, error) {
	open := p.token.line
	if p.token.kind != tokenOpen {
		return nil, p.unexpected()
	}
	p.advance()
	l, err := p.list()
	if err != nil {
		return nil, err
	}
	switch p.token.kind {
	case tokenClose:
		p.advance()
		return l, nil
	case tokenEnd:
		return nil, fault{open, "{ without its end"}
	}
	return nil, p.unexpected()
}

func (p *parser) branch() (command, error) {
	b := &branch{}
	for {
		p.advance() // past if, elif
		condition, err := p.list()
		if err != nil {
			return nil, err
		}
		if err := p.keyword("then"); err != nil {
			return nil, err
		}
		block, err := p.list()
		if err != nil {
			return nil, err
		}
		b.conditions, b.blocks = append(b.conditions, condition), append(b.blocks, block)
		if p.token.word.literal() != "elif" {
			break
		}
	}
	if p.token.word.literal() == "else" {
		p.advance()
		var err error
		if b.otherwise, err = p.list(); err != nil {
			return nil, err
		}
	}
	return b, p.keyword("fi")
}

// body reads do, a list and done.
func (p *parser) body() (list, error) {
	for p.token.kind == tokenLine {
		p.advance()
	}
	if err := p.keyword("do"); err != nil {
		return nil, err
	}
	l, err := p.list()
	if err != nil {
		return nil, err
	}
	return l, p.keyword("done")
}

func (p *parser) forLoop() (command, error) {
	p.advance()
	f := &forLoop{name: p.token.word.literal()}
	if f.name == "" {
		return nil, p.unexpected()
	}
	p.advance()
	if err := p.keyword("in"); err != nil {
		return nil, err
	}
	for p.token.kind == tokenWord {
		f.words = append(f.words, p.token.word)
		p.advance()
	}
	var err error
	f.body, err = p.body()
	return f, err
}

func (p *parser) whileLoop() (command, error) {
	w := &whileLoop{until: p.token.word.literal() == "until"}
	p.advance()
	var err error
	if w.condition, err = p.list(); err != nil {
		return nil, err
	}
	w.body, err = p.body()
	return w, err
}

func (p *parser) function() (command, error) {
	p.advance()
	f := &function{name: p.token.word.literal()}
	if f.name == "" {
		return nil, p.unexpected()
	}
	p.advance()
	for p.token.kind == tokenLine {
		p.advance()
	}
	var err error
	f.body, err = p.block()
	return f, err
}
