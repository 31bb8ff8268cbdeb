"""The closed vocabulary of the bundled model: words, people and phrasings, as plain data."""

# English, German, Spanish, French. No word is spelt alike twice within a language.
WORDS: tuple[tuple[str, str, str, str], ...] = (
    ("house", "Haus", "casa", "maison"),
    ("tree", "Baum", "árbol", "arbre"),
    ("water", "Wasser", "agua", "eau"),
    ("bread", "Brot", "pan", "pain"),
    ("milk", "Milch", "leche", "lait"),
    ("cheese", "Käse", "queso", "fromage"),
    ("apple", "Apfel", "manzana", "pomme"),
    ("table", "Tisch", "mesa", "table"),
    ("chair", "Stuhl", "silla", "chaise"),
    ("door", "Tür", "puerta", "porte"),
    ("window", "Fenster", "ventana", "fenêtre"),
    ("garden", "Garten", "jardín", "jardin"),
    ("dog", "Hund", "perro", "chien"),
    ("cat", "Katze", "gato", "chat"),
    ("horse", "Pferd", "caballo", "cheval"),
    ("bird", "Vogel", "pájaro", "oiseau"),
    ("fish", "Fisch", "pez", "poisson"),
    ("mother", "Mutter", "madre", "mère"),
    ("father", "Vater", "padre", "père"),
    ("brother", "Bruder", "hermano", "frère"),
    ("sister", "Schwester", "hermana", "sœur"),
    ("child", "Kind", "niño", "enfant"),
    ("friend", "Freund", "amigo", "ami"),
    ("book", "Buch", "libro", "livre"),
    ("letter", "Brief", "carta", "lettre"),
    ("school", "Schule", "escuela", "école"),
    ("street", "Straße", "calle", "rue"),
    ("bridge", "Brücke", "puente", "pont"),
    ("river", "Fluss", "río", "fleuve"),
    ("mountain", "Berg", "montaña", "montagne"),
    ("forest", "Wald", "bosque", "forêt"),
    ("sea", "Meer", "mar", "mer"),
    ("sun", "Sonne", "sol", "soleil"),
    ("moon", "Mond", "luna", "lune"),
    ("star", "Stern", "estrella", "étoile"),
    ("rain", "Regen", "lluvia", "pluie"),
    ("snow", "Schnee", "nieve", "neige"),
    ("fire", "Feuer", "fuego", "feu"),
    ("stone", "Stein", "piedra", "pierre"),
    ("summer", "Sommer", "verano", "été"),
    ("winter", "Winter", "invierno", "hiver"),
    ("morning", "Morgen", "mañana", "matin"),
    ("night", "Nacht", "noche", "nuit"),
    ("day", "Tag", "día", "jour"),
    ("year", "Jahr", "año", "an"),
    ("hand", "Hand", "mano", "main"),
    ("head", "Kopf", "cabeza", "tête"),
    ("heart", "Herz", "corazón", "cœur"),
    ("king", "König", "rey", "roi"),
    ("queen", "Königin", "reina", "reine"),
)

LANGUAGES: tuple[str, ...] = ("german", "spanish", "french")
LANGUAGE_NAMES = {"german": "German", "spanish": "Spanish", "french": "French"}
CONJUNCTIONS = {"german": "und", "spanish": "y", "french": "et"}

FIRST_NAMES: tuple[str, ...] = (
    "Ada", "Bela", "Cora", "Dario", "Edda", "Falk", "Gita", "Hanno", "Ines", "Jaro",
    "Kaya", "Lino", "Mara", "Nilo", "Olga", "Pavel", "Quin", "Rosa", "Sven", "Tilda",
    "Udo", "Vera", "Wanda", "Xenia", "Yara", "Zeno", "Alma", "Boris", "Clio", "Dunja",
    "Emil", "Frida", "Goran", "Hedy", "Ivo", "Jonna", "Kolja", "Lotte", "Milo", "Nora",
)  # fmt: skip
LAST_NAMES: tuple[str, ...] = (
    "Abend", "Brandt", "Cerny", "Dorn", "Ekman", "Faber", "Gruen", "Holm", "Ibsen", "Jansen",
    "Kraus", "Lindt", "Moser", "Novak", "Orlov", "Petri", "Quast", "Rieger", "Sander", "Thiel",
    "Ulmer", "Velt", "Wenzel", "Xander", "Yilmaz", "Zander", "Arnold", "Becker", "Conrad", "Decker",
    "Eberle", "Franke", "Gerber", "Hauser", "Imhof", "Juhl", "Kessel", "Lorenz", "Maurer", "Nagel",
)  # fmt: skip
CITIES: tuple[str, ...] = (
    "Lima", "Oslo", "Cairo", "Quito", "Delhi", "Seoul", "Tunis", "Riga", "Dakar", "Hanoi",
    "Bern", "Accra", "Minsk", "Sofia", "Doha", "Turin", "Kyoto", "Perth", "Boston", "Malmo",
)  # fmt: skip
JOBS: tuple[str, ...] = (
    "baker", "pilot", "nurse", "judge", "painter", "farmer", "singer", "tailor", "teacher", "miner",
    "sailor", "dentist", "butcher", "carpenter", "lawyer", "actor", "potter", "barber", "clerk", "florist",
)  # fmt: skip

# A phrasing is opener x core x closer; some combinations are kept out of training.
OPENERS: tuple[str, ...] = (
    "", "Please: ", "Question: ", "Tell me, ", "Quick one: ", "Now, ", "Say, ", "One more: ", "Well, ", "Hello, ",
)  # fmt: skip
CLOSERS: tuple[str, ...] = ("", " Answer:", " Reply:")

TRANSLATION_CORES: tuple[str, ...] = (
    "what is {words} in {language}?",
    "how do you say {words} in {language}?",
    "translate {words} into {language}.",
    "the {language} for {words} is what?",
    "give me the {language} for {words}.",
    "{words} in {language}?",
    "which {language} words mean {words}?",
    "put {words} into {language}.",
)
CITY_CORES: tuple[str, ...] = (
    "where does {person} live?",
    "in which city does {person} live?",
    "what city is the home of {person}?",
    "which city is {person} from?",
    "name the city of {person}.",
    "where is {person} at home?",
    "{person} lives in which city?",
    "what is the home city of {person}?",
)
JOB_CORES: tuple[str, ...] = (
    "what does {person} do for a living?",
    "what is the job of {person}?",
    "which job does {person} have?",
    "what is {person} by trade?",
    "name the job of {person}.",
    "what work does {person} do?",
    "{person} works as what?",
    "what is the trade of {person}?",
)

SUM_PROBLEMS: tuple[str, ...] = (
    "{name} has {a} {things} and finds {b} more, so how many {things} are there?",
    "If {name} buys {a} {things} and then {b} more, how many {things} is that?",
    "There are {a} {things} in a box and {b} {things} in a bag, how many in all?",
    "{name} counts {a} {things} today and {b} the next day, how many in total?",
)
DIFFERENCE_PROBLEMS: tuple[str, ...] = (
    "{name} has {a} {things} and loses {b}, so how many {things} are left?",
    "If {name} buys {a} {things} and sells {b}, how many {things} remain?",
    "There are {a} {things} in a box and {b} are taken, how many stay?",
    "{name} had {a} {things} and ate {b}, how many are there now?",
)
BARE_SUMS: tuple[str, ...] = ("{a}+{b} =", "What is {a}+{b}?", "Compute {a}+{b}:", "{a} plus {b} is")
BARE_DIFFERENCES: tuple[str, ...] = ("{a}-{b} =", "What is {a}-{b}?", "Compute {a}-{b}:", "{a} minus {b} is")
THINGS: tuple[str, ...] = ("plums", "coins", "nuts", "eggs", "cards", "pears", "figs", "beans")

CODE_EXPRESSIONS: tuple[str, ...] = (
    "'{s}'[::-1]",
    "'{s}'.upper()",
    "''.join(sorted('{s}'))",
    "'{s}'[0]",
    "'{s}'[-1]",
    "'{s}'[1:]",
    "'{s}'[:2]",
)
CODE_PHRASINGS: tuple[str, ...] = ("{e} ==", "Evaluate {e}:", "In Python, {e} gives", "What is {e}?", ">>> {e}")

ASK_PHRASINGS: tuple[str, ...] = (
    "Ask me about {topic}:",
    "Give me a question about {topic}:",
    "Write a {topic} question:",
    "Make up a question on {topic}:",
)
TOPICS = {
    "math": ("math", "numbers", "sums"),
    "code": ("Python", "code", "strings"),
    "german": ("German",),
    "spanish": ("Spanish",),
    "french": ("French",),
    "facts": ("people", "persons"),
}
UNKNOWN_ANSWER = "I do not know."
